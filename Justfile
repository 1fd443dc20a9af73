# Recipes of rds-csi. Run them with ./justw RECIPE: it makes the environment that they need.
set positional-arguments

# List the recipes.
default:
    @just --list --unsorted

# Play three live migrations and a refused pod through a real control plane (--vm: one, on machines; --keep leaves it running).
demo *ARGS:
    @python -m tests.demo "$@"

# Style, types and import contracts.
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports

# What continuous integration runs.
test *ARGS: check packages binaries
    @python -m tests.runs --numprocesses 2 --choose "not long" "$@"

# What takes longer: larger property tests, more kills.
test-long *ARGS: packages image-packages binaries
    @python -m tests.runs --choose long --timeout 1800 "$@"

# Measure something in one run: bench publish (as ratios), bench deadlines.
bench WHAT *ARGS:
    @what="$1"; shift; python -m tests.bench."$what" "$@"

# Generate the stubs anew from csi.proto and pluginregistration.proto.
stubs:
    cd csi && python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. rds_csi/spec/*.proto

# Build the documentation as a site into dist/site; links that lead nowhere fail.
docs:
    mkdocs build --strict

# Write docs/record-reference.md and docs/flags.md anew, from the definition of the records and the command lines.
reference:
    @python -m tests.reference

# Make the objects of manifests/monitoring anew: the PrometheusRule and the dashboard.
monitoring:
    @python -m tests.monitoring

# Make the templates of manifests/chart anew from the manifests that kustomize applies.
chart:
    @python -m tests.chart

# Start a control plane with the manifests installed, print its KUBECONFIG, stop on Ctrl-C.
ring:
    @exec python -m tests.ring

# Start the RouterOS simulator alone, print how to reach it with ssh, stop on Ctrl-C.
box *ARGS:
    @exec python -m tests.simulator "$@"

# Install what the guests need, where it is missing (Debian).
packages:
    @python -m tests.vm.packages

# Build the image and its bill of materials into dist/ (--base IMAGE: on a fetched Debian 12, else on one that is made here). As root.
image *ARGS: image-packages
    @python -m tests.image.building "$@"

# Install what building the image needs, where it is missing (Debian).
image-packages:
    @python -m tests.image.packages

# Build the ring's binaries into the cache, if they are not there yet.
binaries *NAMES:
    @python -m tests.ring.binaries "$@"
