"""A handler as people write it: FastAPI, PIL, torchvision's network, an image a request.

python benchmarks/fastapi_server.py --port 8002
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torchvision
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

transform = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.transforms()
app = FastAPI()


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "alive"}


@app.post("/predict")
def predict(images: UploadFile) -> dict[str, Any]:
    image = Image.open(images.file).convert("RGB")
    with torch.inference_mode():
        probs, classes = app.state.model(transform(image)[None]).softmax(1)[0].topk(5)
    return {"classes": classes.tolist(), "probs": probs.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="densenet121")
    asked = parser.parse_args()
    app.state.model = getattr(torchvision.models, asked.model)(weights=None).eval()
    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning")
