"""``python -m nas_followers`` follows one experiment."""

from nas_followers.main import main

if __name__ == "__main__":
    raise SystemExit(main())
