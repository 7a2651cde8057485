"""What the network agrees on: ledger, blocks, rounds and Yuma, in integers, with no clock and no I/O."""
