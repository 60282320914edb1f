"""``python -m nas_operator`` runs the operator."""

from nas_operator.main import main

if __name__ == "__main__":
    raise SystemExit(main())
