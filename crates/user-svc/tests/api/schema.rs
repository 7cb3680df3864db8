//! `schema.rs` and the limits of names and info agree with the migrated database.

use devstack::Stack;

/// What the Diesel CLI prints for the migrated database, as far as our types need it.
fn printed(stack: &Stack) -> String {
    let names = stack.sql(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
         AND relname <> '__diesel_schema_migrations' ORDER BY 1",
    );
    let tables: String = names.lines().map(|table| printed_table(stack, table) + "\n").collect();
    let names = names.lines().collect::<Vec<_>>().join(", ");
    format!("{tables}diesel::allow_tables_to_appear_in_same_query!({names},);\n")
}

fn printed_table(stack: &Stack, table: &str) -> String {
    let columns = stack.sql(&format!(
        "SELECT attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    ));
    let key = stack.sql(&format!(
        "SELECT string_agg(attname, ', ') FROM pg_index JOIN pg_attribute
         ON attrelid = indrelid AND attnum = ANY (indkey) WHERE indrelid = '{table}'::regclass AND indisprimary",
    ));
    let mut text = format!("diesel::table! {{\n    {table} ({}) {{\n", key.trim());
    for column in columns.lines() {
        let (name, rest) = column.split_once(' ').expect("a name and a type");
        let (kind, not_null) = rest.rsplit_once(' ').expect("a type and whether it may be null");
        let kind = match kind {
            "bigint" => "Int8",
            "boolean" => "Bool",
            "integer" => "Int4",
            "text" => "Text",
            "timestamp with time zone" => "Timestamptz",
            other => panic!("this test has no name for the type {other}"),
        };
        let kind = if not_null == "true" { kind.to_owned() } else { format!("Nullable<{kind}>") };
        text += &format!("        {name} -> {kind},\n");
    }
    text + "    }\n}\n"
}

#[test]
fn schema_rs_is_what_the_migrated_database_holds() {
    let committed = include_str!("../../../common/src/database/schema.rs");
    let (_, committed) = committed.split_once("\n\n").expect("a head and the tables");
    assert_eq!(committed, printed(&Stack::shared()));
}

#[test]
fn the_database_has_no_table_beside_those_of_schema_rs_and_diesel() {
    let tables = Stack::shared().sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1");
    assert_eq!(tables.trim(), "__diesel_schema_migrations\ncache_grant\nusers");
}

#[test]
fn the_table_repeats_the_limits_of_names_and_info() {
    let stack = Stack::shared();
    let refused = |name: &str, info: &str| {
        let insert = format!("INSERT INTO users (name, info) VALUES ({name}, {info})");
        stack.postgres().try_sql(stack.database(), &insert).expect_err("refused")
    };
    assert!(refused("''", "'i'").contains("users_name_length"));
    assert!(refused("repeat('n', 129)", "'i'").contains("users_name_length"));
    assert!(refused("'n'", "''").contains("users_info_length"));
    assert!(refused("'n'", "repeat('i', 16385)").contains("users_info_length"));
    stack.sql("INSERT INTO users (name, info) VALUES (repeat('n', 128), repeat('i', 16384)), ('n', 'i')");
    assert!(refused("'n'", "'i'").contains("users_pkey"));
}

#[test]
fn names_are_compared_byte_by_byte_whatever_the_locale() {
    let collation = "SELECT collname FROM pg_collation JOIN pg_attribute ON attcollation = pg_collation.oid
                     WHERE attrelid = 'users'::regclass AND attname = 'name'";
    assert_eq!(Stack::shared().sql(collation).trim(), "C");
}
