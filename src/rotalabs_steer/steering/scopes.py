"""Which tokens steering acts on."""

from rotalabs_steer.model.positions import AfterMarker, AfterText, TokenRange

__all__ = ["AfterMarker", "AfterText", "TokenRange"]
