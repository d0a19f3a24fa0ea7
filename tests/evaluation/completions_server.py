"""A server on this machine that speaks OpenAI's completions with a small transformers model, and fails on request."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = tuple[int, bytes, dict[str, str]]
"""Status, body, headers; status 0 hangs up with the answer half written."""


class CompletionsServer:
    """Answers with the model of `hf_dir`, unless `fault`, asked with the number of the request, gives something else."""

    def __init__(self, hf_dir: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(hf_dir)
        self.models: dict[str, Any] = {"data": [{"id": "small", "max_model_len": 514}]}
        self.models_status = 200
        self.fault: Callable[[int], Fault | None] = lambda number: None
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.verdict: Callable[[str], str | None] = lambda prompt: "Score: 1"
        """What a chat is answered with: the part of a judge."""
        self.waits: list[float] = []
        """Seconds that the client meant to wait before it asked again."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                self.answer(server.models_status if known else 404, json.dumps(server.models).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.requests.append(body)
                    server.keys.add(self.headers.get("authorization"))
                    fault = server.fault(len(server.requests))
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                try:
                    if self.path != f"/v1/{'chat/' * ('messages' in body)}completions":
                        self.answer(404, b"no such path")
                    elif fault is None:
                        self.answer(200, json.dumps({"choices": [server.completion(body)]}).encode())
                    elif fault[0]:
                        self.answer(*fault)
                    else:
                        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + fault[1])
                        self.close_connection = True
                finally:
                    with server.lock:
                        server.busy -= 1

            def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return

        class Http(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                return  # a client that hung up, as it does when another request has failed

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """A choice: the prompt's log-probabilities with echo, or text. One at a time, for torch's seed."""
        if "messages" in body:
            return {"index": 0, "message": {"role": "assistant", "content": self.verdict(body["messages"][0]["content"])}}
        prompt = torch.tensor([body["prompt"]])
        with torch.inference_mode(), self.lock:
            if body.get("echo"):
                return {"index": 0, "text": "", "logprobs": self.log_probabilities(prompt)}
            torch.manual_seed(body["seed"])
            sampling = {"do_sample": True, "temperature": body["temperature"]} if body["temperature"] else {"do_sample": False}
            made = self.model.generate(prompt, max_new_tokens=body["max_tokens"], pad_token_id=0, **sampling)
        text = str(self.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True))
        for stop in body["stop"]:
            text = text.partition(stop)[0]
        return {"index": 0, "text": text}

    def log_probabilities(self, prompt: torch.Tensor) -> dict[str, Any]:
        """Of each token given those before it, and of one more that greedy decoding adds."""
        rows = self.model(prompt).logits[0].log_softmax(-1)
        best, greedy = (found.tolist() for found in rows.max(-1))
        ids = [*prompt[0, 1:].tolist(), greedy[-1]]
        own = rows[range(len(ids)), ids].tolist()
        top = [{str(token): value, str(most): high} for token, value, most, high in zip(ids, own, greedy, best, strict=True)]
        return {"token_logprobs": [None, *own], "top_logprobs": [None, *top]}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
