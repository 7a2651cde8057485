"""What tests of several folders share: keys, chains and machines joined in memory."""
