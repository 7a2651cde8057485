-- The chain database, first version. Every later change is a file of its own in the list of daemon/database.py.
CREATE TABLE blocks (
    height   INTEGER PRIMARY KEY,
    hash     BLOB NOT NULL,
    block    BLOB NOT NULL,  -- canonical CBOR of consensus.blocks.Block
    "commit" BLOB NOT NULL   -- canonical CBOR of the Commit that made it final
) STRICT;

CREATE TABLE state (
    key   BLOB PRIMARY KEY,
    value BLOB NOT NULL      -- canonical CBOR of the record of that table
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE peers (
    node_id   BLOB PRIMARY KEY,
    host      TEXT NOT NULL,
    port      INTEGER NOT NULL,
    last_seen INTEGER NOT NULL  -- unix seconds
) STRICT, WITHOUT ROWID;
