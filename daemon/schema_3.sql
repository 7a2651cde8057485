-- Receipts of calls that this node served or made: the source of scores and bills.
CREATE TABLE receipts (
    hash      BLOB PRIMARY KEY,   -- names the sheet, whoever has signed it
    session   BLOB NOT NULL,
    closed_ms INTEGER NOT NULL,   -- unix milliseconds, by the serving side's clock
    sheet     BLOB NOT NULL       -- canonical CBOR of protocol.receipts.SignedSheet
) STRICT;

CREATE INDEX receipts_by_time ON receipts (closed_ms)
