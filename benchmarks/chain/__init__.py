"""How fast the chain is: to finality between real processes, and executed again when a node catches up."""
