"""What `moed experiment` plays with models: the code of miners and validators, with answers handed over in process."""
