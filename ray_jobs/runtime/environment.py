"""Sets default environment variables for every ProFuser process; values set by the user are kept. Imports nothing heavy."""

import os

ENVIRONMENT = {
    # Without it Ray hides GPUs from tasks that reserve none, and so from the driver's own libraries.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A busy machine with few cores needs longer than Serve's default of 5 s to start a proxy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # Requests pass from proxy to gateway to model by gRPC, and within a process without a thread switch: a fifth less CPU time
    # for a non-streamed answer, a third less for a streamed one.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # The default of ten times a second costs a fortieth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Otherwise a ProfuserError returns from an actor as Ray's own error, and its one line is lost in a traceback.
    "RAY_DATA_RAISE_ORIGINAL_MAP_EXCEPTION": "1",
    # Under load Ray Data would request one more node of every shape that it sees, whatever accelerator a pool names; pending
    # actors request the right one.
    "RAY_DATA_CLUSTER_SCALING_UP_UTIL_THRESHOLD": "inf",
    # A thread that outlives the connection to Ray would start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray's C++ parts log remarks for Ray's developers at level error.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_defaults() -> None:
    """Sets the variables in this process; must be called before Ray or an engine is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
