"""Paddle's inference library over JPEG files, as its guide and PaddleClas' predictor have it.

    python paddle_script.py MODEL SIZE BATCH THREADS FILE...

It runs where paddlepaddle and pillow are, without densekit or torch; file_steps.py starts it. A
line on stdin asks for a pass over the files, a line on stdout says that it is done.
"""

import sys
import tempfile
from typing import Any

import numpy as np
import paddle
from PIL import Image

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def predictor(name: str, size: int, threads: int) -> Any:
    """MKL-DNN on, as PaddleClas' --enable_mkldnn has it, in float32."""
    model = getattr(paddle.vision.models, name)(pretrained=False)
    model.eval()
    shape = paddle.static.InputSpec([None, 3, size, size], "float32")
    with tempfile.TemporaryDirectory() as folder:
        paddle.jit.save(model, f"{folder}/model", input_spec=[shape])
        config = paddle.inference.Config(f"{folder}/model.json", f"{folder}/model.pdiparams")
        config.disable_gpu()
        config.disable_glog_info()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        config.switch_ir_optim(True)
        return paddle.inference.create_predictor(config)


def prepare(file: str, size: int) -> np.ndarray:
    """The shorter side to 256, the middle, normalised: float32 [3, size, size]."""
    image = Image.open(file).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def main() -> None:
    name, *numbers = sys.argv[1:5]
    (size, batch, threads), files = map(int, numbers), sys.argv[5:]
    network = predictor(name, size, threads)
    images = network.get_input_handle(network.get_input_names()[0])
    logits = network.get_output_handle(network.get_output_names()[0])
    for _ in sys.stdin:
        for start in range(0, len(files), batch):
            arrays = [prepare(file, size) for file in files[start : start + batch]]
            images.copy_from_cpu(np.stack(arrays))
            network.run()
            np.argsort(-logits.copy_to_cpu(), 1)[:, :5]
        print("done", flush=True)


if __name__ == "__main__":
    main()
