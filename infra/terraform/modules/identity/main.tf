# A role for each account in the cluster that asks AWS for something (docs/how-to/install-on-kubernetes.md, Who may what), by EKS Pod
# Identity: what it may do, to which prefix of the bucket. What is not named here, no pod can do.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  arn     = "arn:${data.aws_partition.this.partition}"
  account = data.aws_caller_identity.this.account_id
  region  = data.aws_region.this.name

  # read, write: prefixes. history: versions and retention, for audits. retain: where versions are locked. verify, sign: by KMS.
  # look, sources: list training data, and read it. secrets: of Secrets Manager. metrics: write to Prometheus.
  none = { read = [], write = [], history = [], retain = [], verify = false, sign = false, look = false, sources = false, secrets = false, metrics = false }
  workloads = merge({
    pipeline-runner = merge(local.none, {
      namespace = "hardcase", read = ["main/", "kfp/", "mlflow/"], write = ["main/", "kfp/", "mlflow/"],
      history   = ["main/"], retain = ["main/models/"], verify = true, sign = true, look = true, sources = true,
    })
    gpu-step = merge(local.none, {
      namespace = "hardcase", read = ["main/"], write = ["main/"],
      history   = ["main/"], retain = ["main/models/"], verify = true, sign = true, look = true, sources = true,
    })
    light-step = merge(local.none, { namespace = "hardcase", read = ["main/"], history = ["main/"], verify = true })
    # It asks of a source whether anything is new there.
    airflow-launcher = merge(local.none, { namespace = "airflow", read = ["airflow-logs/"], write = ["airflow-logs/"], look = true })
    airflow          = merge(local.none, { namespace = "airflow", read = ["airflow-logs/"], write = ["airflow-logs/"] })
    mlflow           = merge(local.none, { namespace = "mlflow", read = ["mlflow/"], write = ["mlflow/"] })
    run-exporter     = merge(local.none, { namespace = "monitoring", read = ["main/models/", "main/runs/"] })
    # Kubeflow's API server keeps pipelines there, its UI shows what steps handed on.
    ml-pipeline      = merge(local.none, { namespace = "kubeflow", read = ["kfp/"], write = ["kfp/"] })
    ml-pipeline-ui   = merge(local.none, { namespace = "kubeflow", read = ["kfp/"] })
    external-secrets = merge(local.none, { namespace = "external-secrets", secrets = true })
    }, var.prometheus == null ? {} : {
    # The account that the chart kube-prometheus-stack makes for a release called prometheus.
    prometheus-kube-prometheus-prometheus = merge(local.none, { namespace = "monitoring", metrics = true })
  })
}

resource "aws_iam_role" "workload" {
  for_each           = local.workloads
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

# Pod Identity says whose credentials it asks for: of another pod's, this role is not to be had.
data "aws_iam_policy_document" "trust" {
  for_each = local.workloads
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-namespace"
      values   = [each.value.namespace]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [each.key]
    }
  }
}

resource "aws_eks_pod_identity_association" "workload" {
  for_each        = local.workloads
  cluster_name    = var.cluster_name
  namespace       = each.value.namespace
  service_account = each.key
  role_arn        = aws_iam_role.workload[each.key].arn
}

resource "aws_iam_role_policy" "workload" {
  for_each = local.workloads
  name     = "work"
  role     = aws_iam_role.workload[each.key].id
  policy   = data.aws_iam_policy_document.workload[each.key].json
}

data "aws_iam_policy_document" "workload" {
  for_each = local.workloads

  dynamic "statement" {
    for_each = length(each.value.read) > 0 ? [1] : []
    content {
      sid       = "Read"
      actions   = ["s3:GetObject"]
      resources = [for prefix in each.value.read : "${var.bucket_arn}/${prefix}*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.read) > 0 ? [1] : []
    content {
      sid       = "List"
      actions   = ["s3:ListBucket"]
      resources = [var.bucket_arn]
      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = [for prefix in each.value.read : "${prefix}*"]
      }
    }
  }
  dynamic "statement" {
    for_each = length(each.value.write) > 0 ? [1] : []
    content {
      sid       = "Write"
      actions   = ["s3:AbortMultipartUpload", "s3:PutObject"]
      resources = [for prefix in each.value.write : "${var.bucket_arn}/${prefix}*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.history) > 0 ? [1] : []
    content {
      sid       = "WhatTheBucketRemembers"
      actions   = ["s3:GetBucketObjectLockConfiguration", "s3:GetBucketVersioning"]
      resources = [var.bucket_arn]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.history) > 0 ? [1] : []
    content {
      sid       = "ListVersions"
      actions   = ["s3:ListBucketVersions"]
      resources = [var.bucket_arn]
      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = [for prefix in each.value.history : "${prefix}*"]
      }
    }
  }
  dynamic "statement" {
    for_each = length(each.value.history) > 0 ? [1] : []
    content {
      sid       = "ReadRetention"
      actions   = ["s3:GetObjectRetention"]
      resources = [for prefix in each.value.history : "${var.bucket_arn}/${prefix}*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.retain) > 0 ? [1] : []
    content {
      sid       = "Lock"
      actions   = ["s3:PutObjectRetention"]
      resources = [for prefix in each.value.retain : "${var.bucket_arn}/${prefix}*"]
    }
  }
  dynamic "statement" {
    for_each = each.value.sources && length(var.sources) > 0 ? [1] : []
    content {
      sid       = "ReadSources"
      actions   = ["s3:GetObject"]
      resources = [for source in var.sources : "${local.arn}:s3:::${trimsuffix(trimprefix(source, "s3://"), "/")}/*"]
    }
  }
  dynamic "statement" {
    for_each = each.value.look ? var.sources : []
    content {
      actions   = ["s3:ListBucket"]
      resources = ["${local.arn}:s3:::${split("/", trimprefix(statement.value, "s3://"))[0]}"]
      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = ["${join("/", slice(split("/", trimsuffix(trimprefix(statement.value, "s3://"), "/")), 1, length(split("/", trimsuffix(trimprefix(statement.value, "s3://"), "/")))))}/*"]
      }
    }
  }
  dynamic "statement" {
    for_each = length(concat(each.value.read, each.value.write)) > 0 ? [1] : []
    content {
      sid       = "KeyOfTheBucket"
      actions   = length(each.value.write) > 0 ? ["kms:Decrypt", "kms:GenerateDataKey"] : ["kms:Decrypt"]
      resources = [var.artifacts_key_arn]
      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.amazonaws.com"]
      }
    }
  }
  dynamic "statement" {
    for_each = each.value.verify ? [1] : []
    content {
      sid       = "Verify"
      actions   = ["kms:GetPublicKey"]
      resources = [var.signing_key_arn]
    }
  }
  dynamic "statement" {
    for_each = each.value.sign ? [1] : []
    content {
      sid       = "Sign"
      actions   = ["kms:Sign"]
      resources = [var.signing_key_arn]
    }
  }
  dynamic "statement" {
    for_each = each.value.secrets ? [1] : []
    content {
      sid       = "ReadSecrets"
      actions   = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
      resources = ["${local.arn}:secretsmanager:${local.region}:${local.account}:secret:${var.name}/*"]
    }
  }
  dynamic "statement" {
    for_each = each.value.secrets ? [1] : []
    content {
      sid       = "KeyOfTheSecrets"
      actions   = ["kms:Decrypt"]
      resources = [var.platform_key_arn]
      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["secretsmanager.${local.region}.amazonaws.com"]
      }
    }
  }
  dynamic "statement" {
    for_each = each.value.metrics ? [1] : []
    content {
      sid       = "WriteMetrics"
      actions   = ["aps:RemoteWrite"]
      resources = [var.prometheus.workspace_arn]
    }
  }
}
