"""The meter inside training frameworks, one module each; a module names the extra it needs."""
