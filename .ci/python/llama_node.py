"""One real llama.cpp server with a real model on a port that the system picks; prints its URL and runs until killed."""

import sys
import threading

from xllamacpp import CommonParams, Server

params = CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = 4
params.n_ctx = 4096
params.cpuparams.n_threads = 1
params.endpoint_metrics = True
params.model_alias = {"smollm2:135m"}

server = Server(params)
print(f"listening {server.listening_address}", flush=True)
threading.Event().wait()
