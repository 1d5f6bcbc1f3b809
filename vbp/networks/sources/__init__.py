"""Where networks come from: a module for each source, with ``load(choice)``, which gives a ``Model``."""
