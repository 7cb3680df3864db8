// @generated automatically by Diesel CLI.

diesel::table! {
    users (name) {
        name -> Text,
        info -> Text,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}
