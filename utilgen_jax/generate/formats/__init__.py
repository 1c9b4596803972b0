"""The formats in which the images are written; read before JAX is imported."""

# name -> the tool that opens it; a module of that name is in this folder
FORMATS = {
    "imagefolder": "torchvision's ImageFolder and datasets",
    "webdataset": "webdataset and datasets",
    "parquet": "datasets",
    "tfds": "tensorflow-datasets",
}
