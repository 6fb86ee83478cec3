"""Which masks are wrong, where, and how."""

from maskmend.callable_package import make_callable

make_callable(__name__, "maskmend.audit.run", "audit")
