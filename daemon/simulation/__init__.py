"""A network of real nodes in one process, on virtual time, under faults that one seed decides."""
