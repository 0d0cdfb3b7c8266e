-- What must not be read by whoever has the database alone is sealed with the key file: of a job everything that was asked but the places
-- it uses, of a web server's URL the query, which columns have a keyed hash of. `Db::open` seals the rows that were there before.
ALTER TABLE jobs ADD COLUMN sealed BLOB;
ALTER TABLE images ADD COLUMN sealed_url BLOB;
ALTER TABLE stores ADD COLUMN sealed_url BLOB;
