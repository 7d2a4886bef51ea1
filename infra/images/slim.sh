#!/bin/sh
# Make an environment of the light steps small: sh slim.sh SITE-PACKAGES
set -eu
cd "$1"
# evidently.tests and the like are no tests, so only of these.
find matplotlib mpl_toolkits numpy pandas pyarrow pywt scipy sklearn statsmodels \
    -type d -name tests -prune -exec rm -r {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.ipynb' \) -delete
find sklearn/datasets statsmodels/datasets -type f -name '*.csv*' -delete
# Pages of servers and notebooks that do not run here.
rm -r mlflow/server/js evidently/ui/service/assets plotly/package_data/plotly.min.js jupyterlab_plotly ../../../share/jupyter
# Arrow's Flight, headers, and the services of AWS that no step asks.
rm -r pyarrow/include pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight.*
find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name kms ! -name s3 ! -name signin ! -name sso ! -name sso-oidc ! -name sts -exec rm -r {} +
# As steps do, without the client of Kubeflow's API.
_KFP_RUNTIME=true "${VIRTUAL_ENV}/bin/python" - <<'IMPORTS'
import boto3
import cyclonedx.output.json
import evidently.legacy.calculations.stattests.registry
import evidently.metrics
import great_expectations
import huggingface_hub
import imagehash
import jinja2
import kfp.dsl.executor_main
import matplotlib.pyplot
import mlflow.tracking
import obstore.store
import openlineage.client
import pyarrow.compute
import pyarrow.parquet
import securesystemslib.signer
IMPORTS
