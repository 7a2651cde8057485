"""The experiment `dmoe`: a layer of remote experts on virtual time, under delays, failures and dead servers."""
