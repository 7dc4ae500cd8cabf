-- One transaction that needs some 430 MB for a while: a sort in memory of 400,000 rows of 1 KiB, held for four seconds.
SET work_mem = '900MB';
SELECT count(*), pg_sleep(4) FROM (SELECT repeat(md5(g::text), 32) AS row FROM generate_series(1, 400000) g ORDER BY 1) AS sorted;
