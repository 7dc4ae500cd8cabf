-- One transaction that needs some 420 MB for a while: a sort in memory of 100,000 rows of 4 KiB, held for four seconds.
SET work_mem = '900MB';
SELECT count(*), pg_sleep(4) FROM (SELECT (md5(g::text) || repeat('x', 4000)) COLLATE "C" AS row FROM generate_series(1, 100000) g ORDER BY 1) AS sorted;
