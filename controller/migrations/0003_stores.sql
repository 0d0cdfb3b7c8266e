-- Named stores. A store without a URL is the controller's own, in its data folder. Password and token are sealed with the key file
-- beside the database, bound to the store's name and URL: moved to another row they do not open.
CREATE TABLE stores (
    name       TEXT PRIMARY KEY,
    url        TEXT,
    user       TEXT,
    domain     TEXT,
    password   BLOB,
    token      BLOB,
    -- SHA-256 of the key that an HTTPS server must have.
    tls_key    TEXT,
    created_ms INTEGER NOT NULL
) STRICT;
INSERT INTO stores (name, created_ms) VALUES ('local', unixepoch() * 1000);

-- images.url, jobs.image_url and a job's option `base` are places: a URL, or `store:NAME/FILE`.

-- What the agent of a job is known by in the controller's own store; handing the job out again replaces it.
CREATE TABLE store_tokens (
    job_id INTEGER PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    hash   BLOB NOT NULL UNIQUE
) STRICT;

-- Files of the controller's own store that are being written, or were written by an upload. What lies beyond `durable` in a file
-- whose writing was cut off by the controller's end is not believed.
CREATE TABLE uploads (
    file       TEXT PRIMARY KEY,
    image_id   TEXT NOT NULL,
    -- The job whose agent writes it; NULL: somebody with an API token.
    job_id     INTEGER REFERENCES jobs (id) ON DELETE SET NULL,
    durable    INTEGER NOT NULL DEFAULT 0,
    published  INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL
) STRICT;
