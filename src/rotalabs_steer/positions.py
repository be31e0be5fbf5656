"""An older import path of the scopes in `rotalabs_steer.steering`, kept for programs that use it."""

from rotalabs_steer.steering.scopes import AfterMarker, TokenRange

__all__ = ["AfterMarker", "TokenRange"]
