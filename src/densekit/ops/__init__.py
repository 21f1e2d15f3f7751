"""How a dense block is computed: functions over the modules that own the parameters."""
