-- How the validators changed, for those who follow them without the blocks: one proof for the last block of each epoch.
CREATE TABLE steps (
    height INTEGER PRIMARY KEY,
    proof  BLOB NOT NULL     -- canonical CBOR of consensus.proofs.StateProof under the validators' key
) STRICT
