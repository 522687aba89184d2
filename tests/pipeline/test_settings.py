import pytest

from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline import run_pipeline
from wsss_affinity.pipeline.settings import check_settings
from wsss_affinity.pipeline.stages import STAGES


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=null", "seed must be a whole number of at least 0, got None"),
        ("artifacts.format=shard", "artifacts.format must be 'files' or 'shards', got 'shard'"),
        ("data.num_workers=-1", "data.num_workers must be a whole number"),
        ("train_cam.batch_size=0", "train_cam.batch_size must be a whole number of at least 1"),
        ("train_affinity.max_epochs=1.5", "train_affinity.max_epochs must be a whole number"),
        ("train_segmentation.optimization.name=adamx", "did you mean 'adamax'"),
        ("+walk.crf.sxy=3", "walk.crf: .*unexpected keyword argument 'sxy'"),
        ("+train_cam.optimization.rate=1", "train_cam.optimization: .*'rate'"),
        ("cam.scales=[]", r"cam.scales must hold at least one factor, e.g. \[0.5,1.0\]"),
        ("cam.store_dtype=half", "cam.store_dtype must be 'float16' or 'float32', got 'half'"),
        ("+cam.height_prior={sky: [0.5, 1]}", "cam.height_prior: 'sky' is no class; valid names"),
        ("+cam.height_prior={ring: [0.5, 0]}", r"cam.height_prior.ring must be \[centre, spread\]"),
        ("+cam.height_prior={ring: 1}", r"cam.height_prior.ring must be \[centre, spread\]"),
        ("affinity_labels.format=smooth", "affinity_labels.format must be 'hard' or 'soft'"),
        ("train_affinity.border=half", "train_affinity.border: border must be 'full' or 'psa'"),
        ("walk.alpha_sweep=[4,-1]", "walk.alpha_sweep must be a list of positive numbers"),
        ("evaluate.scales=[0]", "evaluate.scales must be a list of positive numbers"),
        ("evaluate.cam_threshold=20", "evaluate.cam_threshold must be at least 0 and below 1"),
        ("evaluate.cam_alphas=[4,0]", "evaluate.cam_alphas must be a list of positive numbers"),
        ("evaluate.cam_alpha=-1", "evaluate.cam_alpha must be a positive number"),
        ("evaluate.crf_iterations=[1,-2]", "evaluate.crf_iterations must be a whole number of at"),
        ("evaluate.crf.num_iterations=0.5", "evaluate.crf.num_iterations must be a whole number"),
        ("+evaluate.crf.sxy=3", "evaluate.crf: .*unexpected keyword argument 'sxy'"),
        ("evaluate.submission_name=a/b", "evaluate.submission_name must be the name of a folder"),
        ("train_affinity.radius=1", "train_affinity.radius: radius must be a whole number"),
        ("train_affinity.transform.crop_size=100", "must be a multiple of output_stride 8"),
        ("walk.method=chebishev", "walk: method must be one of auto, power, chebyshev, dense"),
        ("walk.num_steps=-1", "walk: num_steps must be a whole number of at least 0"),
        ("walk.beta=0", "walk: beta must be positive"),
        ("walk.beta=", "walk.beta must be a positive number, got ''"),
        ("walk.tol=null", "walk.tol must be a positive number, got None"),
        ("walk.tol=1", "walk: tol must lie between 0 and 1"),
        ("walk.border=half", "walk: border must be 'full' or 'psa'"),
        ("walk.padding=none", "walk.padding must be 'masked' or 'psa'"),
        ("walk.alpha_sweep=null", "walk.alpha_sweep must be a list of positive numbers"),
        ("walk.alpha=null", "walk.alpha must be a positive number, got None"),
        ("walk.store_dtype=half", "walk.store_dtype must be 'float16' or 'float32'"),
        ("walk.crf.num_iterations=-1", "walk.crf.num_iterations must be a whole number"),
        ("cam.height_prior=null", "cam.height_prior must be a mapping, {} for none, got None"),
        ("affinity_labels.alpha_low=abc", "affinity_labels.alpha_low must be a positive number"),
        ("train_cam.dropout=2", r"train_cam.dropout must be null or lie in \[0, 1\), got 2"),
        ("train_affinity.transform.padding=blak", "transform.padding must be 'mean' or 'black'"),
        ("train_cam.optimization.lr=abc", "train_cam.optimization.lr must be a positive number"),
        ("evaluate.crf_iterations=5", "evaluate.crf_iterations must be a list of whole numbers"),
        ("evaluate.cam_threshold=null", "evaluate.cam_threshold must be at least 0 and below 1"),
        (
            "train_affinity.output_stride=16",
            "train_affinity.output_stride: .* output_stride 8 only",
        ),
        ("backbone.freeze_stages=99", "train_cam.output_stride: freeze_stages=99 is out of range"),
        ("walk.alpha=0", "walk.alpha must be a positive number"),
        ("train_segmentation.architecture=UNett", "did you mean 'Unet'"),
        ("train_segmentation.encoder=resnet81", "did you mean 'resnet18'"),
    ],
)
def test_value_out_of_range_is_named(override, message):
    with pytest.raises(WSSSError, match=message):
        check_settings(load_config([override]), list(STAGES), ["ring"])


def test_attention_at_random_is_refused():
    cfg = load_config(["walk.affinity=attention", "walk.attention.weights=null"])
    with pytest.raises(
        WSSSError, match=r"walk\.attention\.weights must be imagenet or the path .*, got null"
    ):
        check_settings(cfg, ["random_walk"])


def test_what_ready_made_maps_do_not_use_is_not_looked_at():
    unused = ["cam.method=layercamm", "cam.scales=[]", "cam.store_stride=0"]
    check_settings(load_config(["cams_from=maps", *unused]), ["make_cam"])
    with pytest.raises(WSSSError, match=r"cam.store_dtype must be 'float16'"):
        check_settings(load_config(["cams_from=maps", "cam.store_dtype=half"]), ["make_cam"])


def test_shipped_settings_pass_and_stages_that_do_not_run_are_not_looked_at():
    check_settings(load_config(), list(STAGES))
    check_settings(load_config(["walk.beta=0"]), ["train_cam", "make_cam"])


def test_it_comes_before_any_training(tiny_config, tmp_path):
    with pytest.raises(WSSSError, match="walk: beta must be positive"):
        run_pipeline(tiny_config("walk.beta=0"))
    assert [p.name for p in (tmp_path / "out" / "artifacts").iterdir()] == ["check_data"]


def test_missing_input_comes_before_any_training(tiny_config, tmp_path):
    with pytest.raises(WSSSError, match=r"make_cam has not been run.*affinity_labels reads it"):
        run_pipeline(tiny_config("pipeline.only=[train_cam,affinity_labels]"))
    assert [p.name for p in (tmp_path / "out" / "artifacts").iterdir()] == ["check_data"]
