// @generated automatically by Diesel CLI.

diesel::table! {
    cache_grant (one_row) {
        one_row -> Bool,
        epoch -> Int8,
        redis -> Nullable<Text>,
        life_ms -> Int4,
        pause_ms -> Int4,
        changed_at -> Timestamptz,
    }
}

diesel::table! {
    users (name) {
        name -> Text,
        info -> Text,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::allow_tables_to_appear_in_same_query!(cache_grant, users,);
