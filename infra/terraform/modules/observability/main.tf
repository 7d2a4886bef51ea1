# Who is told, and of what. What pods do is Prometheus's in the cluster (infra/kubernetes/base/monitoring); here is what the
# cluster cannot see of itself.

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  account = data.aws_caller_identity.this.account_id
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = toset(var.emails)
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.key
}

resource "aws_sns_topic_policy" "alarms" {
  arn    = aws_sns_topic.alarms.arn
  policy = data.aws_iam_policy_document.alarms.json
}

data "aws_iam_policy_document" "alarms" {
  statement {
    sid       = "ServicesOfThisAccount"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alarms.arn]
    principals {
      type        = "Service"
      identifiers = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com", "costalerts.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each            = local.alarms
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.why
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.below ? "LessThanThreshold" : "GreaterThanThreshold"
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}

locals {
  rds = { namespace = "AWS/RDS", dimensions = { DBInstanceIdentifier = try(var.database.identifier, "") }, statistic = "Average" }
  alarms = merge(
    {
      karpenter-deaf = {
        namespace = "AWS/SQS", metric = "ApproximateAgeOfOldestMessage", dimensions = { QueueName = var.interruption_queue },
        statistic = "Maximum", below = false, threshold = 240
        why       = "Karpenter does not read of interruptions: is it running?"
      }
    },
    {
      for zone, id in var.nat_gateway_ids : "nat-${zone}" => {
        namespace = "AWS/NATGateway", metric = "ErrorPortAllocation", dimensions = { NatGatewayId = id },
        statistic = "Sum", below = false, threshold = 0
        why       = "The NAT gateway is out of ports: connections are refused."
      }
    },
    var.database == null ? {} : {
      database-disk = merge(local.rds, {
        metric = "FreeStorageSpace", below = true, threshold = try(var.database.storage_gib, 0) * pow(2, 30) / 10,
        why    = "Less than a tenth of the database's disk is free."
      })
      database-cpu = merge(local.rds, {
        metric = "CPUUtilization", below = false, threshold = 85, why = "The database is busy: a larger instance_class?"
      })
      database-memory = merge(local.rds, {
        metric = "FreeableMemory", below = true, threshold = 200 * pow(2, 20), why = "The database runs out of memory: a larger instance_class?"
      })
    },
  )
}

resource "aws_prometheus_workspace" "this" {
  count       = var.prometheus ? 1 : 0
  alias       = var.name
  kms_key_arn = var.kms_key_arn

  logging_configuration {
    log_group_arn = "${aws_cloudwatch_log_group.prometheus[0].arn}:*"
  }
}

resource "aws_cloudwatch_log_group" "prometheus" {
  count             = var.prometheus ? 1 : 0
  name              = "/aws/vendedlogs/prometheus/${var.name}"
  retention_in_days = 365
  kms_key_id        = var.kms_key_arn
}
