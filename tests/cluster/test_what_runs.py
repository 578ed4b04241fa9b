"""The manifests start runnable work: recipes load, every actor fits a group, and Ray Serve accepts the service."""

import shlex
from decimal import Decimal

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.serve.schema import ServeDeploySchema

import ray_jobs.serving.app
from profuser.recipe import Recipe, load_recipe
from profuser.recipe.resources import PoolConfig
from profuser.serving.keys import ENVIRONMENT
from profuser.serving.options import GatewayConfig, ServeConfig, ServedModel
from ray_jobs.cli.options import RECIPES
from tests.cluster.rendered import OVERLAYS, RAY_KINDS, Document, cluster_spec, found, of_kind, render

FUSIONS = [name for name in OVERLAYS if name.startswith("fusion")]
SERVICES = [name for name in OVERLAYS if name.startswith("serve")]
ACCELERATOR = "accelerator_type:"
SPOT = ("'spot'", "'SPOT'", "gke-spot': 'true'")
ON_DEMAND = ("'on-demand'", "'ON_DEMAND'", "gke-spot', 'operator': 'DoesNotExist'")


def ray_document(overlay: str) -> Document:
    (document,) = of_kind(render(overlay), *RAY_KINDS)
    return document


def recipe_of(overlay: str, folder) -> Recipe:
    """Returns the recipe of the overlay's job: its ConfigMap's file, with the command line's settings."""
    documents = render(overlay)
    command, verb, file, *options = shlex.split(ray_document(overlay)["spec"]["entrypoint"])
    assert (command, verb) == ("profuser", "run")
    assert options[::2] == ["--set"] * (len(options) // 2)
    place, name = file.rsplit("/", 1)
    head = cluster_spec(ray_document(overlay))["headGroupSpec"]["template"]["spec"]
    (volume,) = [mount["name"] for mount in head["containers"][0]["volumeMounts"] if mount["mountPath"] == place]
    (source,) = [item["configMap"]["name"] for item in head["volumes"] if item["name"] == volume]
    (config_map,) = [item for item in of_kind(documents, "ConfigMap") if item["metadata"]["name"] == source]
    (folder / name).write_text(config_map["data"][name])
    return load_recipe(folder / name, options[1::2], RECIPES)


def node_types(document: Document) -> dict[str, dict]:
    """Returns the worker groups as Ray's autoscaler reads them."""
    inner = {"metadata": {"name": "c", "namespace": "n"}, "spec": cluster_spec(document)}
    types = _derive_autoscaling_config_from_ray_cr(inner)["available_node_types"]
    return {name: kind for name, kind in types.items() if name in group_specs(document)}


def group_specs(document: Document) -> dict[str, Document]:
    return {group["groupName"]: group for group in cluster_spec(document)["workerGroupSpecs"]}


def demand(pool: PoolConfig) -> dict[str, float]:
    """Returns the resources that an actor of the pool reserves."""
    wanted = {"CPU": 1.0 if pool.num_cpus is None else pool.num_cpus, "GPU": pool.num_gpus or 0.0}
    return wanted | ({f"{ACCELERATOR}{pool.accelerator_type}": 0.001} if pool.accelerator_type else {})


def homes(document: Document, wanted: dict[str, float]) -> set[str]:
    """Returns the groups whose nodes have the requested resources."""
    types = node_types(document)
    return {
        name
        for name, kind in types.items()
        if all(kind["resources"].get(key, 0.0) >= value for key, value in wanted.items())
    }


@pytest.mark.parametrize("overlay", [*FUSIONS, "kind"])
def test_the_jobs_storage_outlives_the_cluster(overlay, tmp_path):
    recipe = recipe_of(overlay, tmp_path)
    assert recipe.storage.startswith(("s3://", "/shared/"))
    head = cluster_spec(ray_document(overlay))["headGroupSpec"]["template"]["spec"]
    assert {"name": "shared", "mountPath": "/shared"} in head["containers"][0]["volumeMounts"]
    assert next(v for v in head["volumes"] if v["name"] == "shared").keys() == {"name", "persistentVolumeClaim"}


@pytest.mark.parametrize("overlay", [*FUSIONS, "kind", "interactive"])
def test_rays_autoscaler_reads_memory_and_cpus_in_every_group(overlay):
    for name, kind in node_types(ray_document(overlay)).items():
        assert kind["resources"]["CPU"] > 0, name
        assert kind["resources"]["memory"] > 0, name


@pytest.mark.parametrize("overlay", FUSIONS)
def test_every_model_has_its_group_and_training_uses_no_spot_nodes(overlay, tmp_path):
    document, recipe = ray_document(overlay), recipe_of(overlay, tmp_path)
    for model in (*recipe.sources, recipe.target):
        assert homes(document, demand(model.pool)) == {"engines"}
    for reward in recipe.rewards:
        assert homes(document, demand(reward.pool)) == {"rewards"}
    assert "cpu" in homes(document, demand(recipe.select.pool))
    workers = recipe.fuse.workers
    assert homes(document, {"CPU": workers.num_cpus, "GPU": 1.0}) == {"train"}
    train = node_types(document)["train"]
    assert train["resources"]["GPU"] * train["max_workers"] >= workers.num_workers
    assert train["resources"]["CPU"] * train["max_workers"] >= workers.num_workers * workers.num_cpus


@pytest.mark.parametrize("overlay", FUSIONS)
def test_the_recipe_names_gpus_because_a_cluster_without_nodes_has_none(overlay, tmp_path):
    recipe = recipe_of(overlay, tmp_path)
    assert recipe.fuse.workers.use_gpu
    assert recipe.collect.sources_at_once
    models = [*recipe.sources, recipe.target, *(r for r in recipe.rewards if r.kind == "reward_model")]
    assert all(model.pool.num_gpus for model in models)


@pytest.mark.parametrize("overlay", [*FUSIONS, "interactive", *SERVICES])
def test_only_redoable_work_runs_on_spot_nodes(overlay):
    for name, group in group_specs(ray_document(overlay)).items():
        placed = str({key: group["template"]["spec"].get(key) for key in ("nodeSelector", "affinity")})
        on_spot = any(word in placed for word in SPOT)
        assert on_spot == (name in ("engines", "rewards")), name
        assert any(word in placed for word in ON_DEMAND) == (name in ("train", "serve")), name
        if "ray.io/market-type" in group.get("labels", {}):
            assert group["labels"]["ray.io/market-type"] == ("spot" if on_spot else "on-demand")
        if "resources" in group:
            assert group["resources"] == {f"{ACCELERATOR}{group['labels']['ray.io/accelerator-type']}": "1"}


def test_the_demo_fits_the_small_cluster(tmp_path):
    document, recipe = ray_document("kind"), recipe_of("kind", tmp_path)
    (cpu,) = node_types(document).values()
    assert "GPU" not in cpu["resources"]
    pools = [*(s.pool for s in recipe.sources), *(r.pool for r in recipe.rewards), recipe.select.pool]
    assert all(homes(document, demand(pool)) == {"cpu"} for pool in pools)
    # One more CPU than the workers', for the tasks that feed them.
    assert cpu["resources"]["CPU"] * cpu["max_workers"] > recipe.fuse.workers.num_workers * recipe.fuse.workers.num_cpus


@pytest.mark.parametrize("overlay", SERVICES)
def test_ray_serve_accepts_the_service(overlay, tmp_path):
    document = ray_document(overlay)
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    application, gateway = config.applications
    options, before = ServedModel.model_validate(application.args), GatewayConfig.model_validate(gateway.args)
    written = [{"name": each.name, "import_path": each.import_path} for each in config.applications]
    wanted = yaml.safe_load(ray_jobs.serving.app.serve_file(ServeConfig(models=(options,)), "0.0.0.0", 8000))[
        "applications"
    ]
    assert written == [{key: each[key] for key in ("name", "import_path")} for each in wanted]
    assert ray_jobs.serving.app.build_gateway(before)._bound_deployment.num_replicas == before.num_gateways
    assert before.models == (options.name,)
    assert not before.insecure
    assert homes(document, {"CPU": options.num_cpus, "GPU": options.num_gpus}) == {"serve"}
    serve = group_specs(document)["serve"]
    assert (options.min_replicas, options.max_replicas) == (serve["minReplicas"], serve["maxReplicas"])
    assert serve["template"]["spec"]["terminationGracePeriodSeconds"] > options.graceful_shutdown_seconds
    recipe = recipe_of("fusion", tmp_path)
    assert options.model == f"{recipe.storage}/{recipe.name}/fuse/model"
    assert options.max_model_len == recipe.target.engine.max_model_len


@pytest.mark.parametrize("overlay", SERVICES)
def test_a_node_is_ready_once_the_served_model_has_answered(overlay):
    document = ray_document(overlay)
    application, _ = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
    (container,) = group_specs(document)["serve"]["template"]["spec"]["containers"]
    probe = container["readinessProbe"]
    command = probe["exec"]["command"][-1]
    body = yaml.safe_load(found(r"--post-data '(.+?)'", command))
    assert body == {"model": application["args"]["name"], "prompt": "a", "max_tokens": 1}
    assert f'"Authorization: Bearer ${{{ENVIRONMENT}%%,*}}"' in command
    assert command.endswith("http://127.0.0.1:8000/v1/completions")
    assert float(found(r"-T (\d+)", command)) < probe["timeoutSeconds"]
    # The operator deploys the application only when the head is ready: on the head, the probe would wait for itself.
    assert "readinessProbe" not in cluster_spec(document)["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_the_queue_admits_the_job_with_all_its_nodes():
    documents, document = render("fusion-kueue"), ray_document("fusion-kueue")
    (queue,) = of_kind(documents, "LocalQueue")
    (cluster_queue,) = of_kind(documents, "ClusterQueue")
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    assert document["spec"]["shutdownAfterJobFinishes"]
    assert not cluster_spec(document)["enableInTreeAutoscaling"]
    flavors = {
        flavor["name"]: {each["name"]: parse_quantity(str(each["nominalQuota"])) for each in flavor["resources"]}
        for flavor in cluster_queue["spec"]["resourceGroups"][0]["flavors"]
    }
    assert flavors.keys() == {flavor["metadata"]["name"] for flavor in of_kind(documents, "ResourceFlavor")}
    spent = {name: dict.fromkeys(quota, Decimal(0)) for name, quota in flavors.items()}
    head = cluster_spec(document)["headGroupSpec"]
    for group in (head, *group_specs(document).values(), {"template": document["spec"]["submitterPodTemplate"]}):
        spec = group["template"]["spec"]
        flavor = f"profuser-{spec.get('nodeSelector', {}).get('profuser/capacity', 'on-demand')}"
        for container in spec["containers"]:
            for name, amount in container["resources"]["requests"].items():
                spent[flavor][name] += group.get("replicas", 1) * parse_quantity(str(amount))
    for name, quota in flavors.items():
        assert all(spent[name][resource] <= quota[resource] for resource in quota), spent[name]
