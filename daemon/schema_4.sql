-- Blocks whose bodies were let go: their headers stay, with the commits that made them final.
CREATE TABLE headers (
    height   INTEGER PRIMARY KEY,
    hash     BLOB NOT NULL,
    header   BLOB NOT NULL,  -- canonical CBOR of consensus.blocks.Header
    "commit" BLOB NOT NULL
) STRICT;

-- The state after the last of those headers, from which the blocks that are kept can be executed again.
CREATE TABLE base (
    key   BLOB PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID
