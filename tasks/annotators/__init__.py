"""Face annotators: detection, 68 landmarks, skin mask and identity descriptor behind one protocol."""

from tasks.annotators.base import Annotator, AnnotatorError, Detection, load_annotator

__all__ = ["Annotator", "AnnotatorError", "Detection", "load_annotator"]
