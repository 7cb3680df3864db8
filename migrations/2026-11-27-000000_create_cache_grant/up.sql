-- One row says which Redis process may be used as the cache, and under which epoch. docs/cache-protocol.md says why.
CREATE TABLE cache_grant (
    one_row    boolean     CONSTRAINT cache_grant_pkey PRIMARY KEY DEFAULT true,
    epoch      bigint      NOT NULL,               -- random, new at each change
    redis      text,                               -- run_id and master_replid; NULL is suspended: none may be used
    life_ms    integer     NOT NULL,               -- for how long a look at this row is valid
    pause_ms   integer     NOT NULL DEFAULT 0,     -- for how long at least a suspension lasts
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cache_grant_one_row CHECK (one_row),
    CONSTRAINT cache_grant_life CHECK (life_ms > 0)
);

-- The roles of the services need the same rights here as on the users: data-svc reads, user-svc writes.
DO $$
DECLARE
    allowed record;
BEGIN
    FOR allowed IN
        SELECT acl.privilege_type AS privilege,
               CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS role
        FROM pg_class, aclexplode(pg_class.relacl) AS acl
        WHERE pg_class.oid = 'users'::regclass AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE')
    LOOP
        EXECUTE format('GRANT %s ON cache_grant TO %s', allowed.privilege, allowed.role);
    END LOOP;
END $$;
