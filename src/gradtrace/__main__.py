"""Run the command line as `python -m gradtrace`."""

from .cli import main

raise SystemExit(main())
