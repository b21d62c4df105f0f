"""``python -m tapotun_trio``"""

from .cli import main

raise SystemExit(main())
