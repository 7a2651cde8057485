-- What past epochs were computed from, so that a reward can be taken apart later, and this node's own small notes.
CREATE TABLE epochs (
    number INTEGER PRIMARY KEY,  -- the how manieth, from 1
    height INTEGER NOT NULL,     -- of the block that ended it
    inputs BLOB NOT NULL         -- zlib of JSON in the epoch_bits layout
) STRICT;

CREATE TABLE notes (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID
