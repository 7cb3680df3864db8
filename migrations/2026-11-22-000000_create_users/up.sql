-- The name is the key: nothing to contend on, and the table can be distributed by it as it is.
-- COLLATE "C" keeps the index independent of the operating system's locale data.
-- The CHECKs repeat the limits of crates/common/src/users/model.rs, for those who write by hand.
CREATE TABLE users (
    name       text COLLATE "C" CONSTRAINT users_pkey PRIMARY KEY,
    info       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_name_length CHECK (octet_length(name) BETWEEN 1 AND 128),
    CONSTRAINT users_info_length CHECK (octet_length(info) BETWEEN 1 AND 16384)
);
