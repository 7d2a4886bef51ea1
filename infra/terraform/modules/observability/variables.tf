variable "name" {
  description = "Prefix of topic, budgets, alarms and workspace."
  type        = string
  default     = "hardcase"
}

variable "kms_key_arn" {
  description = "Key that encrypts notices and metrics."
  type        = string
}

variable "emails" {
  description = "Who is told of alarms and money; each confirms once, by a link in a mail."
  type        = list(string)

  validation {
    condition     = length(var.emails) > 0 && alltrue([for email in var.emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", email))])
    error_message = "emails: name at least one address that somebody reads, or no alarm reaches anyone."
  }
}

variable "monthly_budget" {
  description = "Dollars a month that the account may cost; at 80 % forecast, 80 % and 100 % spent somebody is told."
  type        = number

  validation {
    condition     = var.monthly_budget > 0
    error_message = "monthly_budget: a number of dollars above 0; docs/how-to/provision-aws.md, What it costs, says what to expect."
  }
}

variable "gpu_budget" {
  description = "Dollars a month for nodes with GPUs, by their tag pool = gpu, which has to be switched on as a cost allocation tag."
  type        = number

  validation {
    condition     = var.gpu_budget > 0 && var.gpu_budget <= var.monthly_budget
    error_message = "gpu_budget: above 0 and not above monthly_budget, of which it is a part."
  }
}

variable "anomaly_dollars" {
  description = "Dollars above what is usual, of a service and a day, from which on somebody is told."
  type        = number
  default     = 100

  validation {
    condition     = var.anomaly_dollars > 0
    error_message = "anomaly_dollars: above 0."
  }
}

variable "nat_gateway_ids" {
  description = "NAT gateways to watch, by zone."
  type        = map(string)
}

variable "interruption_queue" {
  description = "Karpenter's queue: what lies there long is read by nobody."
  type        = string
}

variable "database" {
  description = "Database instance to watch: its identifier and the size of its disk, GiB; null where there is none."
  type        = object({ identifier = string, storage_gib = number })
  default     = null
}

variable "prometheus" {
  description = "A managed workspace that keeps metrics when the cluster is gone."
  type        = bool
  default     = false
}
