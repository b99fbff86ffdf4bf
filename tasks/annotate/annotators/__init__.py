"""Face annotators: detection, 68 landmarks, skin mask and identity descriptor behind one protocol."""

from tasks.annotate.annotators.base import Annotator, AnnotatorError, Detection
from tasks.annotate.annotators.composite import CompositeAnnotator, load_annotator
from tasks.sources.labels import LabelError

__all__ = ["Annotator", "AnnotatorError", "CompositeAnnotator", "Detection", "LabelError", "load_annotator"]
