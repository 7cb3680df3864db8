DROP TABLE cache_grant;
