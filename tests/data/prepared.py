"""Data sets as TensorFlow Datasets prepares them, made without TensorFlow."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

FEATURES = "tensorflow_datasets.core.features."


def image(channels: int) -> dict:
    shape = {"dimensions": ["-1", "-1", str(channels)]}
    return {
        "image": {"dtype": "uint8", "shape": shape, "encodingFormat": "png"},
        "pythonClassName": FEATURES + "image_feature.Image",
    }


def prepare(folder, pictures, names=("cat", "dog"), captions=None, file_format="array_record"):
    """A data set such as TFDS's own builders leave behind, DATA_DIR/NAME/VERSION, with the split train."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    features = {
        "image": image(pictures[0].shape[-1]),
        "label": {
            "classLabel": {"numClasses": str(len(names))},
            "pythonClassName": FEATURES + "class_label_feature.ClassLabel",
        },
    }
    if captions:
        features["caption"] = {"text": {}, "pythonClassName": FEATURES + "text_feature.Text"}
    whole = {"featuresDict": {"features": features}, "pythonClassName": FEATURES + "features_dict.FeaturesDict"}
    split = {"name": "train", "numBytes": "1", "shardLengths": [str(len(pictures))]}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    about = {"name": folder.parent.name, "version": folder.name, "fileFormat": file_format, "splits": [split]}
    (folder / "features.json").write_text(json.dumps(whole))
    (folder / "dataset_info.json").write_text(json.dumps(about))
    (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    writer = ArrayRecordWriter(str(folder / f"{folder.parent.name}-train.array_record-00000-of-00001"), "group_size:1")
    for i, pixels in enumerate(pictures):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(encoded(pixels))
        example.features.feature["label"].int64_list.value.append(i % len(names))
        if captions:
            example.features.feature["caption"].bytes_list.value.append(captions[i].encode())
        writer.write(example.SerializeToString())
    writer.close()


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
