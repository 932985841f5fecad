"""``python -m lavila_fast`` is ``lavila-fast``."""

from lavila_fast.cli.main import main

main()
