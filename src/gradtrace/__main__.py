"""Run the command line as `python -m gradtrace`."""

from gradtrace.cli import main

raise SystemExit(main())
