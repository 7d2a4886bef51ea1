# Money: budgets tell what is planned, the monitor what is unusual. Both tell late, by hours: limits of Karpenter's pools and
# Kueue's quota are what holds (infra/kubernetes).

locals {
  budgets = {
    all  = { limit = var.monthly_budget, tags = [] }
    gpus = { limit = var.gpu_budget, tags = ["user:pool$gpu"] }
  }
}

resource "aws_budgets_budget" "this" {
  for_each     = local.budgets
  name         = "${var.name}-${each.key}"
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = tostring(each.value.limit)
  limit_unit   = "USD"

  dynamic "cost_filter" {
    for_each = length(each.value.tags) > 0 ? [1] : []
    content {
      name   = "TagKeyValue"
      values = each.value.tags
    }
  }

  dynamic "notification" {
    for_each = [{ type = "FORECASTED", percent = 80 }, { type = "ACTUAL", percent = 80 }, { type = "ACTUAL", percent = 100 }]
    content {
      notification_type         = notification.value.type
      threshold                 = notification.value.percent
      threshold_type            = "PERCENTAGE"
      comparison_operator       = "GREATER_THAN"
      subscriber_sns_topic_arns = [aws_sns_topic.alarms.arn]
    }
  }
}

resource "aws_ce_anomaly_monitor" "this" {
  name              = var.name
  monitor_type      = "DIMENSIONAL"
  monitor_dimension = "SERVICE"
}

resource "aws_ce_anomaly_subscription" "this" {
  name             = var.name
  frequency        = "IMMEDIATE"
  monitor_arn_list = [aws_ce_anomaly_monitor.this.arn]

  subscriber {
    type    = "SNS"
    address = aws_sns_topic.alarms.arn
  }

  threshold_expression {
    dimension {
      key           = "ANOMALY_TOTAL_IMPACT_ABSOLUTE"
      match_options = ["GREATER_THAN_OR_EQUAL"]
      values        = [tostring(var.anomaly_dollars)]
    }
  }
  depends_on = [aws_sns_topic_policy.alarms]
}
