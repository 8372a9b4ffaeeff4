import sys

from musespark.cli import main

sys.exit(main())
