"""Descriptions of every column of every dataset, for the pages of docs/datasets and the dataset cards."""

from __future__ import annotations

import pyarrow as pa

# By column; OWN overrides it for one dataset.
COMMON = {
    "animation_id": "id of a head under a motion",
    "attempts": "number of attempts",
    "bbox": "left, top, right, bottom of the face, source pixels",
    "bytes": "of these files",
    "cam": "weak-perspective camera s, tx, ty: x' = s (x + tx), y' = -s (y + ty)",
    "challenge": "NoW's challenge; null elsewhere",
    "checkpoint": "hash of the weights, `untrained-<seed>`, or `landmark-fit`",
    "clip": "name of the video below the dataset",
    "colours": "source of base colours: `picture`, or `albedo` if the photograph is missing",
    "count": "images of the identity",
    "crop": "JPEG of the square at twice the size of the face",
    "crop_transform": "source pixels to pixels of the 224 crop that the codes refer to, along the image axes",
    "descriptor": "hash of the embedding that was clustered, or null",
    "det_score": "the detector's score; comparable within one detector only",
    "detail": "detail code δ",
    "detail_spread": "as `spread`, of the detail codes, Euclidean",
    "displacement": "metres along the coarse normal on the UV map, F_d's output plus the bundle's fixed map",
    "displacement_file": "name of a 16-bit PNG below the dataset; metres by the scale and offset of this field",
    "embedding": "identity descriptor of length D (dlib 128, ArcFace 512); not comparable between models",
    "error": "type of the error",
    "etag": "the store's etag, or `<mtime_ns>-<size>` of a local file; of the archive for members",
    "exp": "FLAME expression coefficients ψ",
    "expression": "the motion, as named in the command",
    "eye_distance": "between the eyes' centres, source pixels",
    "face_id": "`<image_id>-<face_index, 2 digits>`; unique in the dataset",
    "face_index": "index in the image, the largest face first",
    "files": "names of the head's files below the dataset",
    "first_row": "row of that file at which the identity starts",
    "frame": "number of the frame in its video, from 0; null: no video",
    "glb": "name of the animated head below the dataset",
    "height": "of the upright source image, pixels",
    "identity": "the head, as named in the command",
    "identity_id": "the identity",
    "identity_source": "`label`, `cluster` or `none`",
    "image_id": "16 hex digits of the SHA-256 of the image's path below the source",
    "index": "position of the item in the plan",
    "label": "identity from a file beside the image",
    "landmarks": "68 points in iBUG order, source pixels",
    "landmarks2d": "68 points of the reconstructed head, contour following the view, source pixels",
    "landmarks3d": "68 points fixed on the reconstructed head, metres, world space",
    "left_out": "the filter or rule that keeps the face out of faces/; null: it is in",
    "light": "spherical harmonics, 9 bands x RGB",
    "mask_coverage": "skin inside the landmarks' outline, 0 to 1",
    "member": "name inside an archive, or row of a table",
    "mesh_file": "name of a GLB file below the dataset, as `deca export` makes it",
    "message": "text of the error, at most 500 characters",
    "method": "`model`, a baseline, or a name of `compare`",
    "normals": "unit normals of the detailed surface on the UV map, world space",
    "npz": "name of the arrays below the dataset",
    "offset": "of a member: where its data starts in the unpacked tar, or its header in a zip",
    "path": "of the image below the archive, `file.tar#member` in tars",
    "picture": "number of the image within the identity",
    "pitch": "degrees, estimated from the landmarks; positive: upwards",
    "pose": "axis-angle of the head (0:3) and of the jaw (3:6), radians",
    "preview": "JPEG, 224 x 224: the detailed head in the crop",
    "rows": "number of the identity's faces",
    "scan_metrical_mm": "as `scan_mm`, aligned without scale",
    "scan_mm": "NoW: distance of every scan vertex to the predicted surface; empty elsewhere",
    "sha256": "of the image's bytes",
    "shape": "FLAME identity coefficients β",
    "shard": "file below faces/ that contains the identity",
    "sharpness": "variance of the Laplacian of the face's grey values at a common size",
    "size": "bytes of the image, -1 unknown",
    "skin_mask": "PNG of one channel in the crop's pixels, 255 is skin",
    "source_uri": "URI of the image, `archive#member` in archives",
    "split": "`train` or `val`, decided by the identity",
    "spread": "median distance of the images' heads to the shared one, millimetres (RMS over vertices)",
    "stage": "where it failed: read, decode, detect, landmark, segment, embed, crop, encode, measure or unit",
    "tex": "albedo coefficients α",
    "texture": "JPEG, 256 x 256: the image warped to the UV map, hidden texels included",
    "time": "of the frame, seconds since the video's first one",
    "track_id": "`<16 hex digits of the video>-<number in the video>`: one subject through one video",
    "unit": "the unit of work that the item belongs to",
    "uri": "of the file, the object or the archive; never with credentials",
    "video": "URI of the video or of the folder of its frames",
    "used": "images that the shared codes are computed from; the others are outliers",
    "vertices": "posed head, metres, world space; V vertices as in the bundle",
    "width": "of the upright source image, pixels",
    "yaw": "degrees, estimated from the landmarks; positive: to the subject's left",
}
OWN = {
    ("tracks", "face_id"): "its row of reconstructions/",
    ("tracks", "shape"): "FLAME identity coefficients β, the same through a track, as are `tex` and `detail`",
    ("tracks", "exp"): "FLAME expression coefficients ψ, smoothed, as are `pose`, `cam` and `light`",
    ("animations", "face_id"): "`<animation_id>-<frame>`",
    ("animations", "frame"): "number in the animation, from 0",
    ("animations", "time"): "seconds since the motion's first frame",
    ("animations", "checkpoint"): "hash of the weights that made the codes",
    ("consensus", "shape"): "FLAME identity coefficients β shared by all images of the identity",
    ("consensus", "detail"): "detail code δ shared by all images of the identity",
    ("exports", "source_uri"): "the row of reconstructions/",
    ("exports", "checkpoint"): "as in that row",
    ("annotations", "crop_transform"): "source pixels to pixels of this crop",
    ("faces", "crop_transform"): "source pixels to pixels of this crop",
    ("reconstructions", "identity_id"): "the identity, if the faces come from a faces/ dataset; else null",
    ("evaluations", "face_id"): "as in the truth; `<subject>/<challenge>/<picture>` in NoW",
    ("truth", "face_id"): "`<identity>-<image>`",
    ("truth", "size"): "side of the square image, pixels",
    ("truth", "cam"): "weak-perspective camera s, tx, ty of the whole image",
    ("truth", "landmarks"): "68 points in iBUG order, pixels of the image",
    ("truth", "displacement"): "metres along the coarse normal on the UV map: the true wrinkles",
    ("truth", "skin_mask"): "PNG of one channel, 255 on visible skin of the face",
    ("truth", "normals"): "PNG of the detailed surface's normals on the UV map, (n + 1) / 2 x 255",
    ("quarantine", "uri"): "URI of the image, `archive#member` in archives",
    ("quarantine", "face_index"): "which face; null: the whole image",
    ("commits", "unit"): "number of the unit",
    ("commits", "revision"): "number of rewrites without some rows; the highest one is current",
    ("commits", "written"): "when the record was written, seconds since the epoch; or null",
    ("commits", "items"): "inputs of the unit",
    ("commits", "rows"): "of the part",
    ("commits", "quarantined"): "rows that failed",
    ("commits", "stages"): "quarantined rows by stage",
    ("commits", "part"): "file with the unit's rows; null: the unit was given up as a whole",
    ("commits", "bytes"): "of the part",
    ("commits", "sha256"): "of the part",
    ("commits", "origin"): "of the part that the rows were first published in, if some were removed since",
    ("commits", "quarantine"): "the file with the rows that failed",
    ("commits", "seconds"): "that a worker spent on the unit",
    ("commits", "versions"): "package and libraries that made the rows",
    ("commits", "files_count"): "files beside the part",
    ("commits", "files_bytes"): "of all of them together",
    ("commits", "files"): "files beside the part: one image or map each",
    ("items", "face_index"): "only this face of the image (retry of one); null: all",
    ("items", "attempts"): "earlier attempts at this row",
}


def meaning(dataset: str, column: str) -> str:
    """Return the description of a column of a dataset. Raises KeyError if there is none."""
    return OWN.get((dataset, column)) or COMMON[column]


def type_in_words(field: pa.Field) -> str:
    """Return a readable type: `float32, 68 x 2`; `uint16, 256 x 256` for quantised values; `image`."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        shape = (field.metadata or {}).get(b"shape", b"").decode().strip("[]").replace(", ", " x ")
        return f"{_plain(kind.value_type)}, {shape or kind.list_size}"
    return "image" if is_image(kind) else _plain(kind)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column holds Hugging Face images."""
    return pa.types.is_struct(kind) and [field.name for field in kind] == ["bytes", "path"]


def _plain(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_plain(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"struct of {', '.join(field.name for field in kind)}"
    if pa.types.is_map(kind):
        return f"map of {kind.key_type} to {kind.item_type}"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
