"""An older import path of `rotalabs_steer.steering`'s scopes, kept so that programs go on working."""

from rotalabs_steer.steering.scopes import AfterMarker, TokenRange

__all__ = ["AfterMarker", "TokenRange"]
