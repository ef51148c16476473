"""Write scikit-learn's handwritten digits as images in class folders: a small stand-in for a data set on disk.

python examples/digit_images.py /tmp/relight-examples
  digits/{train,val}/{0..9}/*.png         ten classes, for image_folder.yaml
  parity/{train,val}/{even,odd}/*.png     a fifth of the same training images in two classes, for finetune.yaml
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(root: Path) -> None:
    digits = load_digits()
    test = np.random.default_rng(0).random(len(digits.target)) < 0.2
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        part = "val" if test[i] else "train"
        image = Image.fromarray((pixels * 15.9375).astype(np.uint8))
        save(image, root / "digits" / part / str(label) / f"{i:04}.png")
        if part == "val" or i % 5 == 0:
            save(image, root / "parity" / part / ("odd" if label % 2 else "even") / f"{i:04}.png")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
