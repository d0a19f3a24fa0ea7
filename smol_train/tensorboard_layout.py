"""The prepared page of TensorBoard, its tab "Custom Scalars": what belongs together in one chart."""

LAYOUT = {
    "Learning": {
        "loss": ["Multiline", ["train/loss$"]],
        "loss by dataset": ["Multiline", ["train/loss/.*"]],
        "held-out loss": ["Multiline", ["eval/loss/.*"]],
        "gradient norm": ["Multiline", ["train/grad_norm$"]],
        "updates left out": ["Multiline", ["train/updates_left_out$"]],
        "norms of the weights": ["Multiline", ["train/parameter_norm/.*"]],
        "learning rate": ["Multiline", ["train/learning_rate$"]],
    },
    "Speed": {
        "tokens per second and device": ["Multiline", ["perf/tokens_per_second_per_device$"]],
        "model FLOPs utilization": ["Multiline", ["perf/model_flops_utilization$"]],
        "throughput, of the run's median": ["Multiline", ["perf/throughput_of_median$"]],
        "seconds of a step": [
            "Multiline",
            ["perf/(step|forward_backward|reduction|optimizer|data_wait)_seconds$"],
        ],
        "share of a step that waits for data": ["Multiline", ["perf/data_wait_share$"]],
    },
    "Ranks and storage": {
        "slowest rank": ["Multiline", ["ranks/slowest$"]],
        "compute": ["Multiline", ["ranks/compute_seconds/.*"]],
        "data wait": ["Multiline", ["ranks/data_wait_seconds/.*"]],
        "bytes read per second, all ranks": ["Multiline", ["data/read_bytes_per_second$"]],
        "seconds of a read": ["Multiline", ["data/read_seconds_(mean|max)$"]],
    },
    "Device of rank 0": {
        "temperature": ["Multiline", ["device/temperature_celsius$"]],
        "power": ["Multiline", ["device/power_watts$"]],
        "clock": ["Multiline", ["device/sm_clock_mhz$"]],
        "throttled": ["Multiline", ["device/throttle/.*"]],
        "memory errors": ["Multiline", ["device/ecc_.*"]],
    },
}
"""Tab -> chart -> [kind, patterns of metrics], as SummaryWriter.add_custom_scalars takes it."""
